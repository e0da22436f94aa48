# The shell functions of nixpkgs that nix/ uses.

# makeWrapper PROGRAM WRAPPER ARGUMENT...
makeWrapper() {
	local program=$1 wrapper=$2 flags= argv0=
	shift 2
	{
		echo '#!/bin/bash'
		while [ $# -gt 0 ]; do
			case $1 in
			--prefix) printf 'export %s=%q"${%s:+%s$%s}"\n' "$2" "$4" "$2" "$3" "$2"; shift 4 ;;
			--suffix) printf 'export %s="${%s:+$%s%s}"%q\n' "$2" "$2" "$2" "$3" "$4"; shift 4 ;;
			--set) printf 'export %s=%q\n' "$2" "$3"; shift 3 ;;
			--add-flags) flags="$flags $2"; shift 2 ;;
			--inherit-argv0) argv0='-a "$0" '; shift ;;
			*) echo "makeWrapper: unknown argument $1" >&2; return 1 ;;
			esac
		done
		printf 'exec %s%q%s "$@"\n' "$argv0" "$program" "$flags"
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

# wrapProgram PROGRAM ARGUMENT...
wrapProgram() {
	local hidden=${1%/*}/.${1##*/}-wrapped
	mv "$1" "$hidden"
	makeWrapper "$hidden" "$1" --inherit-argv0 "${@:2}"
}

# installShellCompletion --cmd NAME --SHELL FILE...
installShellCompletion() {
	local name=$2 file
	shift 2
	while [ $# -gt 0 ]; do
		case $1 in
		--bash) file=bash-completion/completions/$name.bash ;;
		--fish) file=fish/vendor_completions.d/$name.fish ;;
		--zsh) file=zsh/site-functions/_$name ;;
		*) echo "installShellCompletion: unknown argument $1" >&2; return 1 ;;
		esac
		install -D -m 644 /dev/null "$out/share/$file"
		cat "$2" >"$out/share/$file"
		shift 2
	done
}

# installManPage FILE...
installManPage() {
	local page
	for page; do
		install -D -m 644 "$page" "$out/share/man/man${page##*.}/${page##*/}"
	done
}

# runHook HOOK: the packages here have none.
runHook() { :; }
