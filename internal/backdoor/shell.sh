_attest() {
local w="${*:2}" args=()
[ "${#w}" = "$1" ] || return
shift
for w; do printf -v w %b "${w//%/\\x}"; args+=("${w#=}"); done
"_attest_${args[@]}"
}
_attest_hello() {
local id boot= kernel= host= up=
[ -n "$_a_id" ] || _a_id=$1
{ read -r boot < /proc/sys/kernel/random/boot_id; read -r kernel < /proc/sys/kernel/osrelease; read -r host < /proc/sys/kernel/hostname; read -r up _ < /proc/uptime; } 2>/dev/null
for id in "${!_a_jobs[@]}"; do kill -0 "${_a_jobs[$id]}" && echo "attest:$1:job:$id"; done
printf '\n%s\n' "attest:$1:hello:$_a_id:$boot:$up:$kernel:$host"
}
_attest_port() {
local d name n never
exec {never}<> <(:)
for ((n = 0; n < 30; n++)); do
for d in "$1"/*; do
name=; { read -r name < "$d/name"; } 2>/dev/null
[ "$name" = "$3" ] && { exec > "$2/${d##*/}"; } 2>/dev/null && break 2
done
[ -d "$1" ] && read -t 0.1 -u $never
done
exec {never}>&-
}
_attest_ping() { echo "attest:$_a_id:$1:done:$EPOCHREALTIME"; }
_attest_text() { _a_text=$(head -c "$1" | base64 -d; echo .); _a_text=${_a_text%.}; }
_attest_run() {
local id=$1 how=$2 in fd
shift 2
[[ $how != *t* ]] || { set -- "$@" "$_a_text"; _a_text=; }
((++_a_count % 64)) || for in in "${!_a_pid[@]}"; do kill -0 -- "-${_a_pid[$in]}" || unset "_a_pid[$in]" "_a_taker[$in]"; done
set -m
case $how in
*i*)
exec {in}<> <(:)
exec {fd}> "/proc/self/fd/$in"
_attest_start "$id" "$how" "$@" < "/proc/self/fd/$in" {in}>&- {fd}>&- &
exec {in}>&-
_a_in[$id]=$fd ;;
*) _attest_start "$id" "$how" "$@" < /dev/null & ;;
esac
set +m
_a_pid[$id]=$!
[[ $how != *j* ]] || _a_jobs[$id]=$!
}
_attest_look() {
local pid=${_a_pid[$1]} state=gone input=idle
if [ -n "$pid" ] && kill -0 -- "-$pid"; then
kill -0 "$pid" && state=here || state=left
fi
[ -z "${_a_taker[$1]}" ] || ! kill -0 "${_a_taker[$1]}" || input=busy
echo "attest:$_a_id:$2:done:$state:$input"
}
_attest_again() { kill -USR1 "${_a_pid[$1]}"; }
_attest_shed() {
local fd id
for id in "${!_a_in[@]}"; do [ "$id" = "$1" ] || { fd=${_a_in[$id]}; exec {fd}>&-; }; done
}
_attest_start() {
local at="attest:$_a_id:$1" how=$2 user=$3 dir=$4 n=$5 fd mark=$6 as=() pid again= status down= word name uid gid home shell
shift 6
_attest_shed
for word in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do [ ! -e $word/init.scope/cgroup.procs ] || echo 0 > $word/init.scope/cgroup.procs; done
if [ -n "$user" ]; then
name=
while IFS=: read -r name _ uid gid _ home shell; do [ "$name" = "$user" ] || [ "$uid" = "$user" ] && break; name=; done < /etc/passwd
[ -n "$name" ] || { echo "$at:f:notfound:no user \"$user\" in the guest's /etc/passwd"; return; }
[ -n "$home" ] || home=/
export USER=$name LOGNAME=$name HOME=$home SHELL=${shell:-/bin/sh} XDG_RUNTIME_DIR=/run/user/$uid
[ "$uid" = 0 ] || as=(setpriv "--reuid=$uid" "--regid=$gid" --init-groups --)
[ -z "$as" ] || type -P setpriv > /dev/null || { echo "$at:f:failed:another user needs attest's agent or setpriv in the guest"; return; }
[ -n "$dir" ] || { [ -d "$home" ] && cd "$home" || cd /; }
fi
while ((n-- > 0)); do
export "$1" || { echo "$at:f:invalid:environment variable \"${1%%=*}\" cannot be set"; return; }
shift
done
if [ -n "$dir" ]; then
[ -e "$dir" ] || { echo "$at:f:notfound:stat $dir: no such file or directory"; return; }
cd "$dir" || { echo "$at:f:invalid:$dir is not a directory"; return; }
fi
word=$(type -P -- "$1") || { echo "$at:f:notfound:$1: not found in PATH ($PATH)"; return; }
unset OLDPWD
exec 4>&1
[[ $how != *T* ]] || exec 3< <(printf %s "$_a_text")
case $how in
*d*) exec 5> /dev/console || exec 5> /dev/null; exec 6> /dev/null ;;
*)
[[ $how = *j* ]] && word=live || word=whole
exec 5> >(_attest_say "$at:e" live)
exec 6> >(exec 5>&-; _attest_say "$at:o" $word) ;;
esac
for word in /proc/$BASHPID/fd/*; do fd=${word##*/}; [ "$fd" -le 6 ] || [ "$fd" = 255 ] || exec {fd}>&-; done
trap again=1 USR1
set -m
"${as[@]}" "$@" <&0 >&6 2>&5 4>&- 5>&- 6>&- &
pid=$!
set +m
exec < /dev/null 3>&- 6>&-
echo "$at:p:$pid"
while wait $pid; status=$?; [ -n "$again" ]; do again=; echo "$at:p:$pid"; done
[ $status = 0 ] || { read -r word < /proc/1/comm; [[ $word != systemd-shutdow* ]] || down=:down; }
echo "$at:x:$status$down"
[[ $how = *d* ]] || printf '%s\0' "$mark" >&5
}
_attest_say() {
local LC_ALL=C at=$1 how=$2 c d nul full n=0 q=0 most
trap '' HUP INT TERM
exec 4>&-
[ $how = live ] && most=1 || most=149
while
c=
IFS= read -r -d '' -n $most c && [ ${#c} -lt $most ] && nul=1 || nul=
[ -n "$c$nul" ]
do
if [ $most = 1 ]; then
while [ -z "$nul" ] && [ ${#c} -lt 64 ] && read -t 0; do
IFS= read -r -d '' -n 1 d || break
[ -n "$d" ] && c+=$d || nul=1
done
fi
n=$((n + ${#c} + 0${nul:+77}))
[ ${#c} -lt 64 ] && full= || full=1
d=$c
while [[ $d = *...* ]]; do
printf -v c %q "${d%%...*}.."
echo "$at:$((q++)):${#c}:$c"
d=.${d#*...}
done
[ -z "$d" ] || { printf -v c %q "$d"; echo "$at:$((q++)):${#c}:$c"; }
[ -z "$nul" ] || echo "${at}0:$((q++)):0:"
if [ $most = 1 ]; then
[ -z "$nul" ] && [ -z "$full" ] || ! read -t 0 || {
d=$(dd bs=24k count=1 2>/dev/null | base64 -w 0)
while [ -n "$d" ]; do
c=${d:0:800} d=${d:800}
echo "$at+:$((q++)):${#c}:$c"
done
}
elif [ $n -ge 4096 ]; then
{ base64 -w 800; echo .; } | _attest_lines "$at+:" $q
return
fi
done
echo "$at.:$q:0:"
}
if type -P awk > /dev/null; then
_attest_lines() { exec awk -v "at=$1" -v "q=$2" '{ print at q++ ":" length($0) ":" $0; fflush() }'; }
else
_attest_lines() { local c q=$2; while IFS= read -r c; do echo "$1$((q++)):${#c}:$c"; done; }
fi
_attest_in() {
local c fd=${_a_in[$1]} at="attest:$_a_id:$1"
c=$(head -c "$2")
[ -z "$fd" ] || { _attest_shed "$1"; printf %s "$c" | base64 -d >&$fd; echo "$at:i:${PIPESTATUS[1]}"; } 2>/dev/null &
_a_taker[$1]=$!
}
_attest_eof() {
local fd=${_a_in[$1]}
[ -z "$fd" ] || exec {fd}>&-
unset "_a_in[$1]"
}
_attest_kill() { kill "-$1" -- "-$2"; }
_attest_adopt() { kill -USR1 "${_a_jobs[$1]}" || echo "attest:$_a_id:$1:f:notfound:it has ended"; }
_attest_power() {
local init=
read -r init < /proc/1/comm
case $1:$init in
panic:*) (read -t 0.1 -u 9; echo c > /proc/sysrq-trigger) 9<> <(:) & ;;
poweroff:systemd) kill -s RTMIN+4 1 ;;
reboot:systemd) kill -s RTMIN+5 1 ;;
*) "$1" < /dev/null > /dev/null & ;;
esac
echo "attest:$_a_id:$2:done:$?"
}
declare -A _a_in _a_jobs _a_pid _a_taker
_a_id= _a_text= _a_count=0
trap '' USR1
export SHLVL=2
. /etc/profile < /dev/null > /dev/null
export PAGER=
unset OLDPWD
cd /tmp || cd /
umask 022
set +eum
