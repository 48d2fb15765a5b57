//go:build uacfault && !uacfault_clock

package main

// startFaultClock does nothing: this program's wall clock is the machine's.
func startFaultClock(string) {}
