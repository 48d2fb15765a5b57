package controller

import "uac/roles/wire"

// Point is a place where a process may die with the most interesting consequences:
// before or after something is stored or sent.
type Point string

// Points lists all points, in pairs: before and after.
func Points() []Point {
	return []Point{
		pointAccepting, pointAccepted, pointClaiming, pointClaimed, pointStoring, pointStored,
		pointStartSending, pointStartSent, pointAdoptSending, pointAdoptSent,
		pointKillSending, pointKillSent, pointAckSending, pointAckSent,
	}
}

const (
	pointAccepting    Point = "accepting"
	pointAccepted     Point = "accepted" // stored; the client has not been told
	pointClaiming     Point = "claiming"
	pointClaimed      Point = "claimed"
	pointStoring      Point = "storing"
	pointStored       Point = "stored" // nothing that follows from it has been done
	pointStartSending Point = "start-sending"
	pointStartSent    Point = "start-sent"
	pointAdoptSending Point = "adopt-sending"
	pointAdoptSent    Point = "adopt-sent"
	pointKillSending  Point = "kill-sending"
	pointKillSent     Point = "kill-sent"
	pointAckSending   Point = "ack-sending"
	pointAckSent      Point = "ack-sent"
	// pointOther is of messages that change nothing.
	pointOther Point = "other"
)

// pointsOf returns the points before and after a message is sent.
func pointsOf(m *wire.ControllerMessage) (before, after Point) {
	switch m.GetBody().(type) {
	case *wire.ControllerMessage_Start:
		return pointStartSending, pointStartSent
	case *wire.ControllerMessage_Adopt:
		return pointAdoptSending, pointAdoptSent
	case *wire.ControllerMessage_Kill:
		return pointKillSending, pointKillSent
	case *wire.ControllerMessage_Ack:
		return pointAckSending, pointAckSent
	}
	return pointOther, pointOther
}
