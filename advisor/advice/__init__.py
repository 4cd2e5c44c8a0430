"""From a budget to a recommendation, its reasons and its command."""
