"""How README.md and docs/ are made: pages from templates and committed tables, notebooks as they were executed."""
