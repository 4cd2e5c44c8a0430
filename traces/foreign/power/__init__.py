"""Power readings that other tools took, joined with a recording by its clock."""
