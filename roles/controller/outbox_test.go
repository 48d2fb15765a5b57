package controller

import (
	"errors"
	"testing"
	"testing/synctest"

	"uac/roles/wire"
)

func pingOf(number uint64) *wire.ControllerMessage {
	return &wire.ControllerMessage{Body: &wire.ControllerMessage_Ping{Ping: &wire.Ping{Number: number}}}
}

// TestSender: what is put in is sent in order, what an agent does not read is bounded,
// and whoever has nothing to send has no goroutine.
func TestSender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []uint64
		read := make(chan struct{}) // one for each message that the agent reads
		s := &sender{
			send: func(m *wire.ControllerMessage) error {
				<-read
				sent = append(sent, m.GetPing().GetNumber())
				return nil
			},
			fail: func(err error) { t.Errorf("failed: %v", err) },
		}
		s.queue = append(s.queue, pingOf(0)) // like the welcome
		if !s.idle() {
			t.Error("it sends before it is started")
		}
		s.start()
		synctest.Wait()
		for i := range uint64(linkQueue) {
			if !s.put(pingOf(i + 1)) {
				t.Fatalf("message %d is refused", i)
			}
		}
		if s.put(pingOf(9999)) || s.idle() {
			t.Error("an agent that does not read may have any number of messages wait")
		}
		for range linkQueue + 1 {
			read <- struct{}{}
		}
		synctest.Wait()
		for i, number := range sent {
			if number != uint64(i) {
				t.Fatalf("message %d was sent as number %d", number, i)
			}
		}
		if len(sent) != linkQueue+1 || !s.idle() || s.queue != nil {
			t.Errorf("%d messages were sent, want %d and nothing left of them", len(sent), linkQueue+1)
		}
		// synctest demands that no goroutine is left while it is idle.
	})
}

func TestSenderFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("the stream is broken")
		var told []error
		tries := 0
		s := &sender{
			send: func(*wire.ControllerMessage) error { tries++; return broken },
			fail: func(err error) { told = append(told, err) },
		}
		s.put(pingOf(1))
		s.put(pingOf(2))
		synctest.Wait()
		s.put(pingOf(3))
		synctest.Wait()
		if tries != 1 || len(told) != 1 || !errors.Is(told[0], broken) {
			t.Errorf("%d messages were tried, and %v told; want one, once", tries, told)
		}
		if s.idle() {
			t.Error("a stream that failed counts as one over which more may be sent")
		}
	})
}
