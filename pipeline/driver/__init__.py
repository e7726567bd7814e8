"""What a driver works with: its environment, its settings, its leases."""
