"""Chinese addresses as people write them, and the small MGeo model that cuts them into their parts."""
