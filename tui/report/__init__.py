"""`ttscope report`: recordings and advice as one HTML page that needs nothing else."""
