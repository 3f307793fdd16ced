"""What a user of Toolfleet observes, said as tests."""
