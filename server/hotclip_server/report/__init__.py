"""What a person is shown of a job: one self-contained page."""
