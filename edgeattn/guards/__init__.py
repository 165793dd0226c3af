"""What stands between us and the files, terminals and processes of others."""
