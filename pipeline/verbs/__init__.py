"""What is done with data and recorded runs, a file or folder per verb."""
