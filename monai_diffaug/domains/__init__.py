"""Domains: where a kind of image comes from, what its words are, and how it is split by patient."""
