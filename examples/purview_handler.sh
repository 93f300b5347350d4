#!/usr/bin/env -S bash -p
# Runs a command and emits an audit event of it.
#
#   purview_handler.sh [OPTION..] -- COMMAND [ARGUMENT..]
#   purview_handler.sh [OPTION..] --send-pending
#
# The command is left alone: its arguments, stdin, stdout, stderr, environment and process group are as without us,
# and its exit code is ours (128 + N when signal N ended it). We write to stderr only when an event can be neither sent
# nor kept, or a kept line is damaged. Of the environment, `_` is taken away, and what only bash could have set
# (OPTIND, LINENO, ..) may differ.
#
# A signal that would end us goes to the command. One that is sent to us alone is passed on; one to our whole process
# group (by a terminal, `timeout`, systemd) has reached it without us. A `tail` of ours in the group tells the two
# apart, by its end within 0.5 s, for the first signal. Known limits: a later one to the group reaches the command
# twice, but for INT and QUIT when we are in a terminal's foreground: those are taken for the terminal's and never
# passed on. The first may come twice, too, when `tail` got no time to start or to end. When a signal reaches the group and
# ends the command at once, bash 5.2 at times loses the command's exit code (3 of 100): ours is 255 then, and that is in
# the event. What only stops (TSTP) is not passed on. Killed by SIGKILL while the command runs, we emit nothing.
#
# The event: `timestamp` is when the command began, `duration_ms` how long it took, `status` is Success for exit code
# 0 and else Failure, `result_signature` is the exit code, `command` the command's name, `args` its arguments with
# one space between them, and `metadata.argv` the command and its arguments one by one.
#   * Every character arrives as it is: quotes, backslashes, `$()`, newlines, other control characters, Unicode.
#     Nothing is expanded or run.
#   * Bytes that are no UTF-8 can't stand in JSON: each becomes the four characters \xHH, and `metadata.argv_base64`
#     then has the exact bytes, each argument followed by a NUL byte.
#   * Of more than 32 KiB, `args` has the first 32 KiB; `metadata` then has `argv_length_bytes` and `argv_sha256`
#     (of the same bytes as above) in place of `argv`.
#   * Arguments go into the audit log as they are. A secret belongs in a file or in the environment.
#
# Sending. The event's line is first appended to DIR/TOPIC/new.jsonl (one JSON object a line), then what waits for that
# topic is sent by `audit-consumer emit`, and removed when Kafka has acknowledged it. So when Kafka is away the lines
# stay, and the next run of this script for that topic sends them, or `--send-pending` does for every topic (from cron,
# say). After a try that failed none is made for 30 s; what Kafka said stands in DIR/TOPIC/error.
#   * What is to be sent is moved to a file of its own first, DIR/TOPIC/MICROSECONDS.jsonl. So is a new.jsonl of
#     256 KiB. A run sends at most two of these files, the oldest first, so that none is held up by a whole backlog,
#     nor for longer than about three times --timeout-ms; `--send-pending` sends all.
#   * Lines are appended under one lock and sent under another, so none is torn or passed over by handlers that run
#     at once. A line is on the disk before it is sent.
#   * Killed between the sending and the removal, or when only some of the lines were acknowledged, the same lines
#     are sent again. An event keeps its audit_id and timestamp, so the second one is a counted duplicate in
#     PostgreSQL and nothing is stored twice.
#   * A line that was cut (a full disk, a crash) is not sent: it goes to DIR/TOPIC/damaged, and stderr says so.
#
# Options, and the variables that stand in for them:
#   --actor NAME            who; default: the user's name                     AUDIT_ACTOR
#   --operation NAME        what; default: command.run                        AUDIT_OPERATION
#   --correlation-id UUID   ties events together; default: a new one          AUDIT_CORRELATION_ID
#   --source NAME           federated_source; default: local                  AUDIT_SOURCE
#   --tenant ID             default: the consumer's                           AUDIT_TENANT
#   --topic TOPIC           default: forge.audit.query.executed               EMIT_TOPIC
#   --pending DIR           default: ~/.local/state/audit-consumer/pending    AUDIT_PENDING
#   --timeout-ms MS         how long Kafka may take; default: 5000            AUDIT_TIMEOUT_MS
# AUDIT_CONSUMER names the binary (default: audit-consumer); KAFKA_BROKERS and its other settings are passed on.
#
# Exit code: the command's; 2 for a wrong option, and then the command was not run. Of --send-pending: 0 when
# nothing waits any more, else 1.
#
# Needs Linux, bash 5, flock (util-linux) and the core utilities (8.30 for `env -S`).
#
# Every name of ours begins with _pvh_: to assign a variable that came with the environment would change it for the
# command. bash's -p: no function, BASH_ENV or SHELLOPTS of the environment has a say in this script.
set -u

readonly _PVH_ARGS_MAX_BYTES=32768
readonly _PVH_DURATION_MAX_MS=2147483647
readonly _PVH_RETRY_SECONDS=30
readonly _PVH_FILE_BYTES=262144
readonly _PVH_FILES_PER_RUN=2
# The lock on new.jsonl is held for an append; who waits longer finds somebody stopped.
readonly _PVH_LOCK_SECONDS=5
# How a whole line begins and ends. A text inside of it can't end like this, as its quotes are escaped, and no control
# character stands in it.
readonly _PVH_LINE_START='{"audit_id":"'
readonly _PVH_LINE_END='"schema_version":"2.0"}'

_pvh_say() { printf 'purview_handler: %s\n' "$*" >&2; }
_pvh_misused() { _pvh_say "$*; the options stand at the top of $0"; exit 2; }

_pvh_actor=${AUDIT_ACTOR-}
_pvh_operation=${AUDIT_OPERATION:-command.run}
_pvh_correlation_id=${AUDIT_CORRELATION_ID-}
_pvh_source_name=${AUDIT_SOURCE:-local}
_pvh_tenant=${AUDIT_TENANT-}
_pvh_topic=${EMIT_TOPIC:-forge.audit.query.executed}
_pvh_pending=${AUDIT_PENDING:-${XDG_STATE_HOME:-${HOME:-/tmp}/.local/state}/audit-consumer/pending}
_pvh_timeout_ms=${AUDIT_TIMEOUT_MS:-5000}
_pvh_only_pending=no

while (($# > 0)); do
    case $1 in
        --) shift; break ;;
        --send-pending) _pvh_only_pending=yes; shift; continue ;;
        --*) (($# > 1)) || _pvh_misused "$1 needs a value" ;;
        *) _pvh_misused "-- must stand before the command" ;;
    esac
    case $1 in
        --actor) _pvh_actor=$2 ;;
        --operation) _pvh_operation=$2 ;;
        --correlation-id) _pvh_correlation_id=$2 ;;
        --source) _pvh_source_name=$2 ;;
        --tenant) _pvh_tenant=$2 ;;
        --topic) _pvh_topic=$2 ;;
        --pending) _pvh_pending=$2 ;;
        --timeout-ms) _pvh_timeout_ms=$2 ;;
        *) _pvh_misused "there is no option $1" ;;
    esac
    shift 2
done
[[ -n $_pvh_actor ]] || _pvh_actor=$(id -un 2>/dev/null || id -u)
[[ $_pvh_timeout_ms =~ ^[1-9][0-9]{0,8}$ ]] || _pvh_misused "--timeout-ms must be a number of milliseconds"
[[ -z $_pvh_correlation_id || $_pvh_correlation_id =~ ^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$ ]] ||
    _pvh_misused "--correlation-id must be a UUID"
[[ $_pvh_topic =~ ^[A-Za-z0-9._-]{1,249}$ && ! $_pvh_topic =~ ^\.\.?$ ]] || _pvh_misused "--topic is no name of a topic"
((${#_pvh_operation} > 0 && ${#_pvh_operation} <= 256)) || _pvh_misused "--operation must have 1 to 256 characters"
((${#_pvh_actor} <= 256)) || _pvh_misused "--actor must have at most 256 characters"
if [[ $_pvh_only_pending == yes ]]; then
    (($# == 0)) || _pvh_misused "--send-pending runs no command"
else
    (($# > 0)) || _pvh_misused "a command is missing"
fi
_pvh_dir=$_pvh_pending/$_pvh_topic

# Values as JSON ----------------------------------------------------------------------------------------------------

# A character of UTF-8 as bytes, by RFC 3629, section 4: nothing overlong, no surrogates, nothing above U+10FFFF.
readonly _PVH_UTF8=$'([\x01-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})'

# _pvh_is_utf8 TEXT
_pvh_is_utf8() {
    local LC_ALL=C
    # Most are ASCII, and need no long match.
    [[ $1 != *[$'\x80'-$'\xff']* || $1 =~ ^$_PVH_UTF8*$ ]]
}

# _pvh_as_utf8 TEXT: sets _pvh_json to it with \xHH for each byte that is no UTF-8.
_pvh_as_utf8() {
    local LC_ALL=C _pvh_part _pvh_bytes _pvh_byte _pvh_at=0 _pvh_index
    _pvh_json=
    # A part at a time, as each look at a long text takes long.
    while _pvh_part=${1:_pvh_at:256} && [[ -n $_pvh_part ]]; do
        [[ $_pvh_part =~ ^$_PVH_UTF8* ]]
        _pvh_bytes=${BASH_REMATCH[0]}
        if [[ -n $_pvh_bytes ]]; then
            _pvh_json+=$_pvh_bytes
        else
            # Bytes that begin no character, or else the one byte that begins one which is not there.
            _pvh_bytes=${_pvh_part%%[!$'\x80'-$'\xc1'$'\xf5'-$'\xff']*}
            _pvh_bytes=${_pvh_bytes:-${_pvh_part:0:1}}
            for ((_pvh_index = 0; _pvh_index < ${#_pvh_bytes}; _pvh_index++)); do
                printf -v _pvh_byte '%02x' "'${_pvh_bytes:_pvh_index:1}"
                _pvh_json+=\\x${_pvh_byte: -2}
            done
        fi
        _pvh_at=$((_pvh_at + ${#_pvh_bytes}))
    done
}

# _pvh_as_json TEXT: sets _pvh_json to it as a JSON string, with its quotes (RFC 8259, section 7).
_pvh_as_json() {
    local LC_ALL=C _pvh_code _pvh_char _pvh_escape
    if _pvh_is_utf8 "$1"; then _pvh_json=$1; else _pvh_as_utf8 "$1"; fi
    _pvh_json=${_pvh_json//\\/\\\\}
    _pvh_json=${_pvh_json//\"/\\\"}
    if [[ $_pvh_json == *[$'\x01'-$'\x1f\x7f']* ]]; then
        for _pvh_code in {1..31} 127; do
            printf -v _pvh_escape '\\u%04x' "$_pvh_code"
            printf -v _pvh_char '%b' "\\x${_pvh_escape: -2}"
            _pvh_json=${_pvh_json//"$_pvh_char"/"$_pvh_escape"}
        done
    fi
    _pvh_json=\"$_pvh_json\"
}

_pvh_new_uuid() {
    cat /proc/sys/kernel/random/uuid 2>/dev/null || uuidgen
}

# _pvh_arguments COMMAND ARGUMENT..: sets _pvh_args and _pvh_argv to members of the event and of its metadata.
_pvh_arguments() {
    local LC_ALL=C IFS=' ' _pvh_joined _pvh_argument _pvh_list='' _pvh_all_utf8=yes _pvh_dropped
    _pvh_joined="${*:2}"
    if ((${#_pvh_joined} + ${#1} > _PVH_ARGS_MAX_BYTES)); then
        _pvh_joined=${_pvh_joined:0:_PVH_ARGS_MAX_BYTES}
        # Not in the middle of a character, which has at most four bytes.
        for _pvh_dropped in 0 1 2 3; do
            if _pvh_is_utf8 "${_pvh_joined:0:${#_pvh_joined} - _pvh_dropped}"; then
                _pvh_joined=${_pvh_joined:0:${#_pvh_joined} - _pvh_dropped}
                break
            fi
        done
        _pvh_as_json "$_pvh_joined"
        _pvh_args=$_pvh_json
        _pvh_argv="\"argv_length_bytes\":$(printf '%s\0' "$@" | wc -c)"
        _pvh_argv+=",\"argv_sha256\":\"$(printf '%s\0' "$@" | sha256sum | cut -d ' ' -f 1)\""
        return
    fi
    for _pvh_argument in "$@"; do
        _pvh_is_utf8 "$_pvh_argument" || _pvh_all_utf8=no
        _pvh_as_json "$_pvh_argument"
        _pvh_list+=${_pvh_list:+,}$_pvh_json
    done
    _pvh_as_json "$_pvh_joined"
    _pvh_args=$_pvh_json
    _pvh_argv="\"argv\":[$_pvh_list]"
    [[ $_pvh_all_utf8 == yes ]] || _pvh_argv+=",\"argv_base64\":\"$(printf '%s\0' "$@" | base64 | tr -d '\n')\""
}

# _pvh_member NAME TEXT: appends it to _pvh_line.
_pvh_member() {
    _pvh_as_json "$2"
    _pvh_line+=",\"$1\":$_pvh_json"
}

# _pvh_event CODE COMMAND ARGUMENT..: sets _pvh_line to the event.
_pvh_event() {
    local _pvh_code=$1 _pvh_status=Failure _pvh_time _pvh_args _pvh_argv _pvh_duration_ms
    _pvh_duration_ms=$(((_pvh_ended_us - _pvh_started_us) / 1000))
    shift
    ((_pvh_code != 0)) || _pvh_status=Success
    TZ=UTC printf -v _pvh_time '%(%Y-%m-%dT%H:%M:%S)T' $((_pvh_started_us / 1000000))
    _pvh_arguments "$@"
    _pvh_line="$_PVH_LINE_START$(_pvh_new_uuid)\",\"correlation_id\":\"${_pvh_correlation_id:-$(_pvh_new_uuid)}\""
    _pvh_line+=",\"timestamp\":\"$_pvh_time.${_pvh_started_us: -6}Z\",\"status\":\"$_pvh_status\""
    _pvh_line+=",\"result_signature\":\"$_pvh_code\""
    # A clock that was set back tells no duration.
    ((_pvh_duration_ms < 0 || _pvh_duration_ms > _PVH_DURATION_MAX_MS)) || _pvh_line+=",\"duration_ms\":$_pvh_duration_ms"
    _pvh_member operation "$_pvh_operation"
    _pvh_member actor "$_pvh_actor"
    _pvh_member command "$1"
    _pvh_line+=",\"args\":$_pvh_args"
    _pvh_member federated_source "$_pvh_source_name"
    [[ -z $_pvh_tenant ]] || _pvh_member tenant_id "$_pvh_tenant"
    _pvh_member client_app purview_handler.sh
    _pvh_as_json "${HOSTNAME-}"
    _pvh_line+=",\"metadata\":{\"host\":$_pvh_json,$_pvh_argv},$_PVH_LINE_END"
}

# Sending -----------------------------------------------------------------------------------------------------------

# _pvh_lock: the lock on new.jsonl, until the subshell ends.
_pvh_lock() {
    umask 077
    mkdir -p -- "$_pvh_dir" && exec {_pvh_lock}>>"$_pvh_dir/lock" && flock -w "$_PVH_LOCK_SECONDS" "$_pvh_lock"
}

# _pvh_move_new: moves new.jsonl to a file that is to be sent, under the lock. Fails when it is empty.
_pvh_move_new() {
    [[ -s $_pvh_dir/new.jsonl ]] || return 1
    mv -n -- "$_pvh_dir/new.jsonl" "$_pvh_dir/${EPOCHREALTIME//[!0-9]/}.jsonl" && sync -- "$_pvh_dir"
}

# _pvh_keep LINE: appends it to new.jsonl. Fails when it may not be on the disk.
_pvh_keep() (
    _pvh_lock || exit 1
    _pvh_new=$_pvh_dir/new.jsonl
    [[ ! -e $_pvh_new ]] || (($(wc -c <"$_pvh_new") < _PVH_FILE_BYTES)) || _pvh_move_new || exit 1
    # What a full disk or a crash cut stays a line of its own. A crash may leave NUL bytes, which $() would drop.
    [[ ! -s $_pvh_new || -z $(tail -c 1 -- "$_pvh_new" | tr '\0' '0') ]] || printf '\n' >>"$_pvh_new" || exit 1
    printf '%s\n' "$1" >>"$_pvh_new" && sync -- "$_pvh_new" "$_pvh_dir"
) 2>/dev/null

# _pvh_emit: sends the lines of stdin; what went wrong is on stderr.
_pvh_emit() {
    "${AUDIT_CONSUMER:-audit-consumer}" emit --topic "$_pvh_topic" --timeout-ms "$_pvh_timeout_ms" >/dev/null
}

# _pvh_send_file FILE: sends and removes it.
_pvh_send_file() {
    local _pvh_whole="^${_PVH_LINE_START}[^[:cntrl:]]*$_PVH_LINE_END\$" _pvh_error=$_pvh_dir/error _pvh_codes
    LC_ALL=C grep -a -- "$_pvh_whole" "$1" 2>/dev/null | _pvh_emit 2>"$_pvh_error.new"
    _pvh_codes=("${PIPESTATUS[@]}")
    # grep: 1 says that there was no such line, and more that it could not read them all.
    if ((_pvh_codes[0] > 1 || _pvh_codes[1] != 0)); then
        { echo "$EPOCHSECONDS"; cat -- "$_pvh_error.new"; } 2>/dev/null >"$_pvh_error"
        rm -f -- "$_pvh_error.new"
        return 1
    fi
    if LC_ALL=C grep -aqv -- "$_pvh_whole" "$1"; then
        LC_ALL=C grep -av -- "$_pvh_whole" "$1" >>"$_pvh_dir/damaged" || return 1
        _pvh_say "cut lines were not sent: they stand in $_pvh_dir/damaged"
    fi
    rm -f -- "$1" "$_pvh_error" "$_pvh_error.new"
}

# _pvh_send COUNT: sends at most so many files, within the time-out for each and once more for another handler that
# sends. Fails when it was tried in vain.
_pvh_send() (
    umask 077
    exec {_pvh_sending}>>"$_pvh_dir/sending.lock" || exit 1
    # Who holds it may send our line too.
    flock -w $(((_pvh_timeout_ms + 999) / 1000)) "$_pvh_sending" || exit 1
    for ((_pvh_index = 0; _pvh_index < $1; _pvh_index++)); do
        _pvh_files=("$_pvh_dir"/[0-9]*.jsonl)
        if [[ ! -e ${_pvh_files[0]} ]]; then
            (_pvh_lock && _pvh_move_new) 2>/dev/null || exit 0
            _pvh_files=("$_pvh_dir"/[0-9]*.jsonl)
        fi
        _pvh_send_file "${_pvh_files[0]}" || exit 1
    done
)

# _pvh_is_too_early: whether the last try failed a moment ago.
_pvh_is_too_early() {
    local _pvh_failed_at='' _pvh_now=$EPOCHSECONDS
    [[ -e $_pvh_dir/error ]] && read -r _pvh_failed_at 2>/dev/null <"$_pvh_dir/error"
    # A time that is yet to come tells that the clock was set back.
    [[ $_pvh_failed_at =~ ^[1-9][0-9]{0,11}$ ]] &&
        ((_pvh_failed_at <= _pvh_now && _pvh_now - _pvh_failed_at < _PVH_RETRY_SECONDS))
}

if [[ $_pvh_only_pending == yes ]]; then
    shopt -s dotglob
    _pvh_code=0
    for _pvh_dir in "$_pvh_pending"/*; do
        _pvh_topic=${_pvh_dir##*/}
        _pvh_files=("$_pvh_dir"/*.jsonl)
        [[ -e ${_pvh_files[0]} ]] || continue
        # The files that are there, of which new.jsonl becomes one, and one more that may be made meanwhile.
        _pvh_send $((${#_pvh_files[@]} + 1))
        _pvh_files=("$_pvh_dir"/*.jsonl)
        [[ -e ${_pvh_files[0]} ]] || continue
        _pvh_code=1
        _pvh_say "events still wait in $_pvh_dir: $(tail -n +2 "$_pvh_dir/error" 2>/dev/null)"
    done
    exit "$_pvh_code"
fi

# The command -------------------------------------------------------------------------------------------------------

_pvh_child=
_pvh_waiting_signals=()
_pvh_was_interrupted=no

# Those that would end us, and can be caught.
readonly _PVH_SIGNALS=(HUP INT QUIT USR1 USR2 PIPE ALRM TERM XCPU XFSZ VTALRM PROF)

# The watcher: a process of our group that only waits, so that a signal to the group ends it, and with it its pipe to
# us. It ends when we close the pipe. It serves for one signal: were another one started while the command may end,
# bash 5.2 would at times wait for the command for ever.
exec {_pvh_watch}< <(trap - "${_PVH_SIGNALS[@]}"; ulimit -c 0; exec tail -f /dev/null 2>/dev/null)

# Called by traps, and starts no process:
# shellcheck disable=SC2317
# _pvh_is_in_foreground: whether a terminal sends its signals to us and the command alike.
_pvh_is_in_foreground() {
    local _pvh_stat _pvh_fields
    { IFS= read -r _pvh_stat <"/proc/$$/stat"; } 2>/dev/null || return
    # Behind the name: state, parent, group, session, terminal, the terminal's group.
    IFS=' ' read -r -a _pvh_fields <<<"${_pvh_stat##*) }"
    [[ ${_pvh_fields[2]} == "${_pvh_fields[5]}" ]]
}

# shellcheck disable=SC2317
# _pvh_pass_on SIGNAL: to the command, unless it went to the whole group and the command has it.
_pvh_pass_on() {
    local _pvh_read
    _pvh_was_interrupted=yes
    if [[ -z $_pvh_child ]]; then
        _pvh_waiting_signals+=("$1")
        return
    fi
    if [[ -n $_pvh_watch ]]; then
        read -r -t 0.5 -u "$_pvh_watch"
        _pvh_read=$?
        exec {_pvh_watch}<&-
        _pvh_watch=
        # 1 at the end of the pipe, more than 128 when the time is over.
        ((_pvh_read != 1)) || return
    elif [[ $1 == INT || $1 == QUIT ]] && _pvh_is_in_foreground; then
        return
    fi
    kill -s "$1" "$_pvh_child" 2>/dev/null
}

for _pvh_signal in "${_PVH_SIGNALS[@]}"; do
    # shellcheck disable=SC2064 # the name as it is now
    trap "_pvh_pass_on $_pvh_signal" "$_pvh_signal"
done

_pvh_started_us=${EPOCHREALTIME//[!0-9]/}
# In the background, so that signals reach us while it runs; bash would take its stdin and make it ignore INT and QUIT.
(
    trap - "${_PVH_SIGNALS[@]}"
    exec {_pvh_watch}<&-
    # What bash itself sets, as it came; and our options are not the command's, by an exported SHELLOPTS.
    set +pu
    if mapfile -d '' -t _pvh_environment <"/proc/$$/environ"; then
        unset -v OLDPWD PWD SHLVL
        for _pvh_entry in "${_pvh_environment[@]}"; do
            [[ ! $_pvh_entry =~ ^(COLUMNS|IFS|LINES|OLDPWD|PS4|PWD|SHLVL)= ]] || export "${_pvh_entry?}"
        done
    fi 2>/dev/null
    exec -- "$@"
) <&0 &
_pvh_child=$!
for _pvh_signal in ${_pvh_waiting_signals[@]+"${_pvh_waiting_signals[@]}"}; do
    kill -s "$_pvh_signal" "$_pvh_child" 2>/dev/null
done
while true; do
    _pvh_was_interrupted=no
    # Bash would report a command that a signal ended.
    { wait "$_pvh_child"; } 2>/dev/null
    _pvh_code=$?
    # A signal of ours ends the wait and not the command.
    [[ $_pvh_was_interrupted == yes ]] || break
done
_pvh_ended_us=${EPOCHREALTIME//[!0-9]/}
# Its process id may belong to another now; and the event is to be sent whatever comes: what sends it inherits this.
trap '' "${_PVH_SIGNALS[@]}"
[[ -z $_pvh_watch ]] || exec {_pvh_watch}<&-

_pvh_event "$_pvh_code" "$@"
if _pvh_keep "$_pvh_line"; then
    _pvh_is_too_early || _pvh_send "$_PVH_FILES_PER_RUN"
elif ! _pvh_emit <<<"$_pvh_line"; then
    _pvh_say "the event could be neither sent nor kept in $_pvh_dir: $_pvh_line"
fi
exit "$_pvh_code"
