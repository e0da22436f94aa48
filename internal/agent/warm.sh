# The warm shell's program: see pool.go. The agent joins the lines to one, without
# these comments, so each command ends with its own semicolon.
set -m;
printf attest-shell >/proc/self/comm;
while read -r -N 12 -u 3 A; do
	set -- ${A:0:4} ${A:4:4} ${A:8:4};
	(
		set +m;
		exec 5</proc/AGENT/fd/$1 >/proc/AGENT/fd/$2 2>/proc/AGENT/fd/$3 3<&-;
		set --;
		unset REPLY BASH_EXECUTION_STRING;
		set -euo pipefail;
		# The first eval of a process is slow.
		A=:;
		eval "SECONDS=0; $A";
		builtin printf 'r %s\n' $BASHPID >/proc/$$/fd/4;
		exec 4>&-;
		# The command comes: how its end is told, and its text.
		read -r -N 1 -u 5 B || :;
		read -r -N 99999999 -u 5 A || :;
		# What follows it in its eval is all that is left to do. The last command
		# leaves $_ as it is after "set -euo pipefail".
		case $B in
		1)
			eval "unset A B; exec 5<&-; SECONDS=0; set -o pipefail; $A";
			set -- "$?";
			exec >/proc/$$/fd/4 2>&-;
			builtin printf 'e %s\n' "$1";
			exit 199;;
		*)
			eval "unset A B; exec 5<&-; SECONDS=0; set -o pipefail; $A";;
		esac
	);
	case $? in
	199) ;;
	*) printf 'x %s\n' $? >&4;;
	esac;
done
