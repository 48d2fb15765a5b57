package lifeline

// OnOwnThread runs f on a thread that has files of its own.
func OnOwnThread(f func()) error {
	done := make(chan error)
	onThread(func() {
		err := keepOnly()
		if err == nil {
			f()
		}
		done <- err
	})
	return <-done
}
