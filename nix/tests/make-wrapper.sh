# The shell functions of nixpkgs' makeWrapper that nix/ uses.
makeWrapper() {
	local program=$1 wrapper=$2 flags=
	shift 2
	{
		echo '#!/bin/bash'
		while [ $# -gt 0 ]; do
			case $1 in
			--prefix) printf 'export %s=%q%q"${%s:+$%s}"\n' "$2" "$4" "$3" "$2" "$2"; shift 4 ;;
			--suffix) printf 'export %s="${%s:+$%s}"%q%q\n' "$2" "$2" "$2" "$3" "$4"; shift 4 ;;
			--set) printf 'export %s=%q\n' "$2" "$3"; shift 3 ;;
			--add-flags) flags="$flags $2"; shift 2 ;;
			--inherit-argv0) shift ;;
			*) echo "makeWrapper: unknown argument $1" >&2; return 1 ;;
			esac
		done
		printf 'exec -a "$0" %q%s "$@"\n' "$program" "$flags"
	} >"$wrapper"
	chmod +x "$wrapper"
}
