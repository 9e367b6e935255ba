"""The paper's claims, tested one by one at sizes that fit a small machine: see README.md beside this file."""
