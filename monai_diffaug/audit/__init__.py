"""Does it leak: what of the training patients can be found in synthetic images."""
