"""Methods that walk back to noise or into the latent space (survey section 4.2.3)."""
