"""What several methods share: their base, and what families of them have in common."""
