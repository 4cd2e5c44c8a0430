"""Problems, their answers, and what judges them."""
