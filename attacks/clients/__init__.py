"""Which clients took part, whose an example is, what a client holds, and whether one record exists at all."""
