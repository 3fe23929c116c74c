"""Programs judged by running them: see judges.py."""
