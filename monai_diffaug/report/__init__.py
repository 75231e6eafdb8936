"""What people look at: contact sheets, cards of backbones, reports."""
