#!/bin/sh
# Runs one attempt of a step and writes down how it ended.
#
#   sh wrapper.sh ATTEMPT-DIRECTORY COMMAND [ARGUMENT...]
#
# It is started in a session of its own, with its input from /dev/null, its output
# to the file "output", and the write end of the pipe "alive" as descriptor 9. The
# command inherits all of that. As long as anybody holds the pipe, the attempt is
# alive. No variable is set before the command has ended: it might be one that the
# command inherits.

# The file "status" is made once: a second wrapper in the same directory runs nothing.
set -C

# Outlive the signals that are meant for the command. A handler, unlike an ignored
# signal, is not inherited; it runs after the command has ended.
trap : HUP INT QUIT TERM USR1 USR2 PIPE ALRM

# From here on the command counts as having run.
printf 'started %d\n' "$$" >"$1/status" || exit 125
(
	shift
	exec "$@"
)
code=$?

# The last word proves that the line is whole. There is room for it even when the disk
# has become full meanwhile, because the block is there already.
printf 'exit %d end\n' "$code" >>"$1/status"
# A child of the command may go on holding the pipe: say that there is news. If no agent
# listens, that is no business of the step's output.
printf . >&9 2>/dev/null
