# The shell functions of nixpkgs that nix/ uses.

# makeWrapper PROGRAM WRAPPER ARGUMENT...
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

# Debian 12's mkfs.erofs reads directories only: what comes as a tar is unpacked for it.
mkfs.erofs() {
	local arg tree flags=()
	if command mkfs.erofs --help 2>&1 | grep -q -e --tar; then
		command mkfs.erofs "$@"
		return
	fi
	for arg in "${@:1:$#-1}"; do
		[ "$arg" = --tar=f ] || flags+=("$arg")
	done
	tree=$(mktemp -d)
	chmod 755 "$tree"
	tar --extract --directory "$tree"
	command mkfs.erofs "${flags[@]}" "${@: -1}" "$tree"
	chmod -R u+w "$tree"
	rm -rf "$tree"
}
