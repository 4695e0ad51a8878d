"""The sweep as a state machine: which stage runs now, what a result means, when it is over."""
