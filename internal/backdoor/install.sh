attest_install() {
local say="attest:$1" size=$2 sum=$3 upload=$5 dir= port= name d n out own
for ((n = 0; n < 300; n++)); do
[ -n "$upload" ] || break
for d in /sys/class/virtio-ports/*; do
name=; { read -r name < "$d/name"; } 2>/dev/null
[ "$name" = "$upload" ] && port=/dev/${d##*/}
done
[ -n "$port" ] && [ -e "$port" ] && break
sleep 0.1
done
[ -z "$upload" ] || [ -e "$port" ] || { echo "$say:failed:the guest has no virtio serial port $upload"; return; }
for d in /run /dev/shm /tmp /var/tmp; do
mkdir -p "$d/attest" && chmod 700 "$d/attest" && printf '#!/bin/sh\n' > "$d/attest/try" && chmod 700 "$d/attest/try" && "$d/attest/try" && dir=$d/attest && break
done 2>/dev/null
[ -n "$dir" ] || { echo "$say:failed:there is no directory in which a program can be put and run (of /run, /dev/shm, /tmp and /var/tmp)"; return; }
rm -f "$dir/try" "$dir/agent"
own=$(type -P attest-agent) && [ "$(sha256sum < "$own")" = "$sum  -" ] && cp -p "$own" "$dir/agent" && chmod 700 "$dir/agent" && (exec -a attest-install "$dir/agent" "$sum") > /dev/null 2>&1 && { echo "$say:started:$own"; return; }
rm -f "$dir/agent"
[ "$4" = 1 ] || [ -z "$upload" ] || timeout 2 cat < "$port" > /dev/null
echo "$say:ready:$dir"
out=$({ if [ -n "$upload" ]; then head -c "$size" < "$port"; else head -c "$size" | base64 -d; fi > "$dir/agent" && chmod 700 "$dir/agent"; } 2>&1) || { echo "$say:failed:$out"; return; }
out=$( (exec -a attest-install "$dir/agent" "$sum") 2>&1) && echo "$say:started:$dir" || echo "$say:failed:$?: ${out//$'\n'/; }"
}
