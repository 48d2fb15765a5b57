package agent
const childEnv = "UAC_AGENT_TEST_CHILD"
func childMain() int { return 0 }
