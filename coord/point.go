package coord

// Point is a place where a process may die with the most interesting consequences:
// before or after something is stored or sent.
type Point string

// Points lists all points, in pairs: before and after.
func Points() []Point {
	return []Point{
		pointOriginWriting, pointOriginWritten, pointGenerationWriting, pointGenerationWritten,
		pointSessionOpening, pointSessionOpened, pointBatchProposing, pointBatchApplied,
		pointAliveProposing, pointAliveApplied, pointVoteSending, pointVoteSent,
		pointLossProposing, pointLossDecided, pointTermProposing, pointTermWon,
	}
}

const (
	pointOriginWriting     Point = "origin-writing"
	pointOriginWritten     Point = "origin-written"
	pointGenerationWriting Point = "generation-writing"
	pointGenerationWritten Point = "generation-written"
	pointSessionOpening    Point = "session-opening"
	pointSessionOpened     Point = "session-opened"
	pointBatchProposing    Point = "batch-proposing"
	pointBatchApplied      Point = "batch-applied"
	pointAliveProposing    Point = "alive-proposing"
	pointAliveApplied      Point = "alive-applied"
	pointVoteSending       Point = "vote-sending"
	pointVoteSent          Point = "vote-sent"
	pointLossProposing     Point = "loss-proposing"
	pointLossDecided       Point = "loss-decided"
	pointTermProposing     Point = "term-proposing"
	pointTermWon           Point = "term-won"
)
