# Runs a PostgreSQL server in a new directory for as long as standard input is open; then stops it and removes the directory.
# Whoever starts this script holds the other end of that pipe and never writes to it, so any end of that process, a SIGKILL
# included, ends the server too. Standard output is held open by the server: it reads as EOF when the server is gone.
# Arguments: the new directory, the directory of the server's binaries, the port on the loopback.
exec 2>&1
umask 077
trap : HUP INT TERM
mkdir "$1" && cd "$1" || exit 1
(
	trap '' QUIT # initdb finishes in peace; postgres sets a handler of its own
	"$2/initdb" -D data -U postgres -A trust -E UTF8 --locale=C --no-sync --no-instructions >log 2>&1 &&
		exec "$2/postgres" -D data -p "$3" \
			-c listen_addresses=127.0.0.1 -c unix_socket_directories= \
			-c fsync=off -c synchronous_commit=off -c full_page_writes=off \
			-c max_connections=200 -c max_prepared_transactions=8 -c shared_buffers=64MB 2>>log
) </dev/null &
exec >/dev/null 2>&1
read -r eof
# Immediate shutdown, asked for again until the job is gone: the server may not be far enough yet to listen to it.
while kill -QUIT $!; do sleep 0.02; done
cd /
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
