"""What people chose: kept as it comes, and turned into datasets."""
