"""Adapters: other libraries' networks, autoencoders and schedules as the four parts of a backbone."""
