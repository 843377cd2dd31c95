package pgtenancy

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgtenancy/pgtenancy/internal/ident"
	"github.com/pgtenancy/pgtenancy/internal/wire"
)

// How KeepSpares goes about it. CREATE, RENAME and DROP SCHEMA make every session of the database plan each of its statements anew
// when that runs next, which takes as long for one transaction with many of them as for one with one. So there is one such
// transaction in a while, for several schemas.
const (
	sparePause     = time.Second            // between two looks at the stock
	spareWaitMost  = time.Minute            // the same where PostgreSQL cannot be reached
	spareBatchTime = 200 * time.Millisecond // after which a batch is committed: it has locked the shared tables that it references
	spareKeep      = time.Minute            // between two signs of life of those who keep a kind
	spareLease     = 5 * time.Minute        // after the last one, nobody keeps the kind any more
)

// spareLock is the key of the transaction-level advisory lock of whoever fills the stock: the first eight bytes of the SHA-256
// of "pgtenancy/spares".
const spareLock = -6147654718416808490

// sparePrefix begins the name of a spare's schema, which ends with '_', as a tenant's that goes with its ID cannot.
const sparePrefix = "pgtenancy_spare_"

// KeepSpares keeps a stock of n schemas that have had all tenant migrations at hand, and blocks until ctx is cancelled, which is no
// error. Provision takes one of them where there is one, instead of building it: a tenant is there after a rename.
//
// It looks once a second, and builds what is missing. Any number of processes may call it at once: together they keep n, and where
// their n differ, the largest. A spare is only for fleets whose migrations and configuration are the same as those it was built
// with. So each version of a service that is running keeps spares of its own; those that nobody has kept for five minutes are
// dropped. Nothing is built while the shared migrations at hand are not those that the shared schemas have had.
//
// A spare belongs to no tenant yet. What migrations see as the name of the schema and as the tenant's setting is a name that
// begins with pgtenancy_spare_, and a migration in Go finds no tenant in its context. Where that name turns up in a row, a default,
// a function, a comment or the like, or where a migration writes to a table in a shared schema, the migrations do for each tenant
// something else: KeepSpares returns an *InvalidError that says what it was, and no spare is made of them. It cannot see what was
// computed of the name, as a hash: such migrations must not be used with KeepSpares. With FleetConfig.IsolateRoles, migrations that
// leave a table or sequence to another role than the owner's are an *InvalidError too.
//
// The other errors: *MigrationError for a migration that fails, ErrRegistryOutdated. A lost connection, and a lock that others hold, are
// waited out. Whatever ends it, and be it a crash: a spare that is not finished is never there.
func (f *Fleet) KeepSpares(ctx context.Context, n int) error {
	if n < 1 {
		return invalid("KeepSpares's n", strconv.Itoa(n), "must be positive")
	}
	if len(f.tenant.all) == 0 {
		return invalid("FleetConfig.Migrations", "", "must have tenant migrations for KeepSpares")
	}
	if err := f.registryReady(ctx); err != nil {
		return err
	}
	pause := sparePause
	for {
		lost := false
		err := f.withOwner(ctx, func(wc *conn) error {
			defer func() { lost = wc.Pgx().IsClosed() }()
			return f.refill(ctx, wc, n)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			pause = sparePause
		case lost || errors.As(err, new(*pgconn.ConnectError)) || passing(err):
			pause = min(2*pause, spareWaitMost)
		default:
			return err
		}
		select {
		case <-time.After(pause/2 + mathrand.N(pause)): // not all processes at once
		case <-ctx.Done():
			return nil
		}
	}
}

// passing reports whether an error of PostgreSQL's is one of the moment.
func passing(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	// lock_not_available, and the classes connection exception, transaction rollback, insufficient resources, operator intervention.
	return pgErr.Code == "55P03" || slices.Contains([]string{"08", "40", "53", "57"}, pgErr.Code[:2])
}

// spareKind tells apart spares of the same migrations that are not alike for another reason.
func (f *Fleet) spareKind() string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %q %d", f.owner.cfg.Conns.ConnConfig.User, f.appRole, f.pool.cfg.SharedSchemas, f.pool.cfg.Setting, f.shared.digest(len(f.shared.all)))
	if f.roles != "" { // it has no grants then
		fmt.Fprintf(h, " %q", f.roles)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// spareArgs are the arguments $1 to $3 of ofSpares.
func (f *Fleet) spareArgs(more ...any) []any {
	return append([]any{f.tenant.newest(), f.tenant.digest(len(f.tenant.all)), f.spareKind()}, more...)
}

// ofSpares is the condition for spares s that are as this fleet would build them.
const ofSpares = `s.version = $1 and s.digest = $2 and s.kind = $3 and exists (select from pg_catalog.pg_namespace n where n.nspname = s.schema_name)`

// spareSetting has the name of the spare that was claimed, until the transaction ends.
const spareSetting = "pgtenancy.spare"

// claimStep takes a spare from the stock, and has one row where there was one.
func (f *Fleet) claimStep() wire.Step {
	return wire.Step{
		SQL: `with free as materialized (
				select s.schema_name from pgtenancy.spares s where ` + ofSpares + ` order by s.made_at limit 1 for update of s skip locked
			)
			delete from pgtenancy.spares s using free where s.schema_name = free.schema_name
			returning pg_catalog.set_config('` + spareSetting + `', s.schema_name, true)`,
		Args: f.spareArgs(), Keep: true,
	}
}

// renameStep makes the spare that was claimed t's schema. It is DO so that nobody has to wait for the name.
func renameStep(t Tenant) wire.Step {
	return wire.Step{SQL: "do " + ident.Literal("begin execute pg_catalog.format('alter schema %I rename to %I', pg_catalog.current_setting('"+
		spareSetting+"'), "+ident.Literal(t.schema)+"); end")}
}

// staleSpares are spares s that are not this fleet's, that nobody keeps, and that its role may drop; and rows without a schema.
const staleSpares = `not exists (select from pg_catalog.pg_namespace n where n.nspname = s.schema_name)
	or not (s.version = $1 and s.digest = $2 and s.kind = $3)
		and exists (select from pg_catalog.pg_namespace n where n.nspname = s.schema_name and pg_catalog.pg_has_role(n.nspowner, 'usage'))
		and not exists (
			select from pgtenancy.spares k
			where k.version = s.version and k.digest = s.digest and k.kind = s.kind and k.kept_at >= pg_catalog.now() - $4::interval)`

// refill looks at the stock once.
func (f *Fleet) refill(ctx context.Context, wc *conn, n int) error {
	var have int
	var kept, stale bool
	err := wc.Pgx().QueryRow(ctx, `select count(*) filter (where `+ofSpares+`), coalesce(bool_or(`+ofSpares+` and s.kept_at >= pg_catalog.now() - $5::interval), true),
			coalesce(bool_or(`+staleSpares+`), false) from pgtenancy.spares s`,
		f.spareArgs(spareLease, spareKeep)...).Scan(&have, &kept, &stale)
	if err != nil {
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	if have > 0 && !kept {
		// One row, so that whoever claims in this moment finds the others.
		_, err := wc.Pgx().Exec(ctx, `update pgtenancy.spares set kept_at = pg_catalog.now() where schema_name = (
			select s.schema_name from pgtenancy.spares s where `+ofSpares+` order by s.made_at desc limit 1 for update of s skip locked)`, f.spareArgs()...)
		if err != nil {
			return fmt.Errorf("pgtenancy: keep spares: %w", err)
		}
	}
	if have < n {
		if err := f.spareTx(ctx, wc, func(room int) error { return f.buildSpares(ctx, wc, n, room) }); err != nil {
			return err
		}
	}
	if stale {
		return f.spareTx(ctx, wc, func(room int) error { return f.dropSpares(ctx, wc, room) })
	}
	return nil
}

// spareTx calls fn in a transaction that holds the lock of the stock, unless others hold it. room is how many locks the
// transaction may take.
func (f *Fleet) spareTx(ctx context.Context, wc *conn, fn func(room int) error) (err error) {
	committed := false
	defer func() {
		if !committed && wc.TxStatus() != 'I' {
			_ = wc.Rollback(ctx) // a connection on which that fails is closed
		}
	}()
	if _, err := wc.Run(ctx, []wire.Step{{SQL: beginSQL}}); err != nil {
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	var got bool
	var room int
	err = wc.Pgx().QueryRow(ctx, `select pg_catalog.pg_try_advisory_xact_lock($1), `+lockTable+` / 4,
		case when pg_catalog.current_setting('lock_timeout') = '0' then pg_catalog.set_config('lock_timeout', $2, true) end`,
		spareLock, timeoutSetting(LockTimeoutDefault)).Scan(&got, &room, nil)
	if err != nil {
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	if got {
		if err := fn(room); err != nil {
			return err
		}
	}
	if _, err := wc.Run(ctx, []wire.Step{{SQL: "commit"}}); err != nil {
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	committed = true
	return nil
}

// lockTable is how many locks PostgreSQL has room for, at least.
const lockTable = `pg_catalog.current_setting('max_locks_per_transaction')::int * (pg_catalog.current_setting('max_connections')::int
	+ pg_catalog.current_setting('max_prepared_transactions')::int)`

// buildSpares builds what is missing, in an open transaction, or as much as that can hold. There is nothing to build where the
// shared schemas stand elsewhere than the migrations at hand: that is for Migrate, or a newer version of the service was here.
func (f *Fleet) buildSpares(ctx context.Context, wc *conn, n, room int) error {
	var missing int
	var shared standing
	err := wc.Pgx().QueryRow(ctx, `select $4::int - (select count(*) from pgtenancy.spares s where `+ofSpares+`), r.shared_version, r.shared_digest
		from pgtenancy.registry r`, f.spareArgs(n)...).Scan(&missing, &shared.version, &shared.digest)
	if err != nil {
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	if shared != (standing{f.shared.newest(), f.shared.digest(len(f.shared.all))}) {
		return nil
	}
	began := time.Now()
	for built := 1; built <= missing; built++ {
		if err := f.buildSpare(ctx, wc); err != nil {
			return err
		}
		var locks int
		if err := wc.Pgx().QueryRow(ctx, `select count(*) from pg_catalog.pg_locks where pid = pg_catalog.pg_backend_pid()`).Scan(&locks); err != nil {
			return fmt.Errorf("pgtenancy: keep spares: %w", err)
		}
		if locks+locks/built > room || time.Since(began) > spareBatchTime {
			break
		}
	}
	return nil
}

func newSpareName() string { return sparePrefix + strings.ToLower(rand.Text()) + "_" }

// buildSpare builds one in an open transaction, as Provision would build it.
func (f *Fleet) buildSpare(ctx context.Context, wc *conn) error {
	name := newSpareName()
	t := Tenant{id: name, schema: name, path: ident.Quote(name), state: Provisioning, version: f.tenant.newest()}
	scope := &wire.Scope{Value: name, Own: t.path, Others: f.owner.suffix, Schema: name, Version: t.version}
	ctx = WithTenant(ctx, Tenant{}) // there is none, also where the caller's has one
	before, err := f.sharedWrites(ctx, wc)
	if err != nil {
		return err
	}
	var p pipeline
	p.add(origin{}, wire.Step{SQL: "create schema " + t.path})
	p.add(origin{}, f.grantSteps(t, false)...)
	if err := f.build(ctx, &tx{binding: binding{tenant: t}, pool: f.owner, conn: wc, scope: scope}, t, &p, nil); err != nil {
		var failed *MigrationError
		if errors.As(err, &failed) {
			failed.Tenant = ""
			return err
		}
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	if err := f.checkSpare(ctx, wc, name, before); err != nil {
		return err
	}
	if _, err := wc.Run(ctx, []wire.Step{{SQL: rowSecurity("on")}, {
		SQL:  `insert into pgtenancy.spares (version, digest, kind, schema_name) values ($1, $2, $3, $4)`,
		Args: f.spareArgs(name),
	}}); err != nil {
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	return nil
}

// sharedWrites returns how many rows this session has written in each table of the shared schemas, as far as that was not passed on
// to the statistics, which it is not in a transaction.
func (f *Fleet) sharedWrites(ctx context.Context, wc *conn) (map[string]int64, error) {
	rows, _ := wc.Pgx().Query(ctx, `select n.nspname || '.' || c.relname, pg_catalog.pg_stat_get_xact_tuples_inserted(c.oid)
			+ pg_catalog.pg_stat_get_xact_tuples_updated(c.oid) + pg_catalog.pg_stat_get_xact_tuples_deleted(c.oid)
		from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = any($1) and c.relkind = 'r'`, f.pool.cfg.SharedSchemas) // the error is in rows
	writes := map[string]int64{}
	var table string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&table, &n}, func() error { writes[table] = n; return nil }); err != nil {
		return nil, fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	return writes, nil
}

// checkSpare checks that the migrations did nothing that they would have done otherwise for a tenant: the name of the spare, which
// is also the value of the tenant's setting, is nowhere.
func (f *Fleet) checkSpare(ctx context.Context, wc *conn, name string, before map[string]int64) error {
	fail := func(what string) error {
		return invalid("FleetConfig.Migrations", "", what+": KeepSpares needs migrations that do the same for every tenant")
	}
	after, err := f.sharedWrites(ctx, wc)
	if err != nil {
		return err
	}
	for table, n := range after {
		if n != before[table] {
			return fail("must not write to " + table + " for each tenant, which is shared")
		}
	}
	where, err := findName(ctx, wc, name)
	if err != nil {
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	if where != "" {
		return fail("must not put the name of the schema or the tenant into " + where)
	}
	owned, err := f.ownedByOthers(ctx, wc, name)
	if err != nil {
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	if owned {
		return fail("must leave all tables and sequences to FleetConfig.Owner where FleetConfig.IsolateRoles is set")
	}
	return nil
}

// ownedByOthers reports whether what the role of a tenant may do with a table or sequence depends on when the role was made. It has
// default privileges on what the owner makes, and keeps them where that is given to others: no grant at the end comes to the same.
func (f *Fleet) ownedByOthers(ctx context.Context, wc *conn, schema string) (owned bool, err error) {
	if f.roles == "" {
		return false, nil
	}
	err = wc.Pgx().QueryRow(ctx, `select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = $1 and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and pg_catalog.pg_get_userbyid(c.relowner) <> current_user)`, schema).Scan(&owned)
	return owned, err
}

// findName returns what has the name of a schema in its definition or in its rows, in that schema, "" where nothing has.
func findName(ctx context.Context, wc *conn, name string) (where string, err error) {
	var bytes strings.Builder // of the name, as PostgreSQL writes those of a constant in an expression
	for _, b := range []byte(name) {
		fmt.Fprintf(&bytes, " %d", b)
	}
	var object *string
	if err := wc.Pgx().QueryRow(ctx, namedSQL, name, bytes.String()).Scan(&object); err != nil {
		return "", err
	}
	if object != nil {
		return *object, nil
	}

	// Rows that a policy hides from the owner were not inserted by migrations, which run with row_security off.
	var sql string
	err = wc.Pgx().QueryRow(ctx, `select coalesce(string_agg(pg_catalog.format(
			'select %1$L where exists (select from only %2$I.%1$I %2$I where pg_catalog.strpos(%2$I::text, %2$L) > 0)', c.relname, n.nspname), ' union all '), '')
		from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = $1 and (c.relkind = 'r' or c.relkind = 'm' and c.relispopulated)
			and not (c.relrowsecurity and pg_catalog.row_security_active(c.oid))`, name).Scan(&sql)
	if err == nil && sql != "" {
		rows, _ := wc.Pgx().Query(ctx, sql+" limit 1") // the error is in rows
		var tables []string
		if tables, err = pgx.CollectRows(rows, pgx.RowTo[string]); err == nil && len(tables) > 0 {
			return "rows of " + tables[0], nil
		}
	}
	return "", err
}

// buildAhead builds the schema of a tenant that is to come with the migrations of from, in a transaction of its own, so that the locks
// which these take on shared tables are not held while rows are put into it. It returns the name that the schema has until
// claimBuilt, which is that of a spare's that nobody else takes and that goes like those that nobody keeps, should this process end.
// It returns "" where the migrations have to run in the transaction of the tenant, by what they do or since they fail. prepare, which
// may be nil, is called for what is built in the end.
func (f *Fleet) buildAhead(ctx context.Context, wc *conn, from *Fleet, t Tenant, prepare func(schema string, scope *wire.Scope) error) (name string, err error) {
	committed := false
	defer func() { // also when a migration panics
		if !committed && wc.TxStatus() != 'I' {
			_ = wc.Rollback(ctx) // a connection on which that fails is closed
		}
	}()
	var stale bool
	err = wc.Pgx().QueryRow(ctx, `select coalesce(bool_or(`+staleSpares+`), false) from pgtenancy.spares s`, f.spareArgs(spareLease)...).Scan(&stale)
	if err != nil {
		return "", err
	}
	if stale { // what others left is in nobody's way
		err := f.spareTx(ctx, wc, func(room int) error { return f.dropSpares(ctx, wc, room) })
		if err != nil && !passing(err) {
			return "", err
		}
	}

	name = newSpareName()
	t.version = from.tenant.newest()
	scope := f.ownerScope(t)
	t.schema, t.path, t.role = name, ident.Quote(name), ""
	scope.Own, scope.Schema = t.path, name
	ctx = WithTenant(ctx, t)
	_, err = wc.Run(ctx, []wire.Step{{SQL: beginSQL}, {SQL: `select pg_catalog.set_config('lock_timeout', $1, true)`, Args: []any{timeoutSetting(ChangeWaitDefault)}}})
	if err != nil {
		return "", err
	}
	var p pipeline
	p.add(origin{}, wire.Step{SQL: "create schema " + t.path})
	p.add(origin{}, f.grantSteps(t, false)...)
	p.add(origin{}, wire.Step{SQL: rebuild(true)})
	err = from.build(ctx, &tx{binding: binding{tenant: t}, pool: f.owner, conn: wc, scope: scope}, t, &p, nil)
	var failed *MigrationError
	switch {
	case ctx.Err() != nil || wc.Pgx().IsClosed() || passing(err):
		return "", err
	case errors.As(err, &failed):
		return "", wc.Rollback(ctx)
	case err != nil:
		return "", err
	}
	var elsewhere bool
	if err := wc.Pgx().QueryRow(ctx, writesElsewhere, name, f.pool.cfg.SharedSchemas).Scan(&elsewhere); err != nil {
		return "", err
	}
	where, err := findName(ctx, wc, name)
	if err != nil {
		return "", err
	}
	owned, err := f.ownedByOthers(ctx, wc, name)
	if err != nil {
		return "", err
	}
	if elsewhere || where != "" || owned {
		return "", wc.Rollback(ctx)
	}
	if prepare != nil {
		if err := prepare(name, scope); err != nil {
			return "", err
		}
	}
	_, err = wc.Run(ctx, []wire.Step{
		{SQL: rowSecurity("on")},
		{
			SQL:  `insert into pgtenancy.spares (version, digest, kind, schema_name) values ($1, $2, $3, $3)`,
			Args: []any{t.version, from.tenant.digest(len(from.tenant.all)), name},
		},
		{SQL: "commit"},
	})
	if err != nil {
		return "", err
	}
	committed = true
	return name, nil
}

// writesElsewhere selects whether this transaction has written to a table outside of schema $1, or altered one, made a role or written
// a large object: it has a lock then. Catalogs are locked that long for these two only. Functions and
// types in the shared schemas $2 are as young as this transaction, or younger where others make them: then nothing is built ahead.
const writesElsewhere = `select exists (
	select from pg_catalog.pg_locks l join pg_catalog.pg_class c on c.oid = l.relation join pg_catalog.pg_namespace n on n.oid = c.relnamespace
	where l.locktype = 'relation' and l.pid = pg_catalog.pg_backend_pid() and l.mode in ('RowExclusiveLock', 'AccessExclusiveLock')
		and (c.oid >= 16384 and c.relpersistence <> 't' and n.nspname not in ($1, 'pg_toast')
			or c.oid in ('pg_catalog.pg_authid'::pg_catalog.regclass, 'pg_catalog.pg_auth_members'::pg_catalog.regclass, 'pg_catalog.pg_largeobject'::pg_catalog.regclass)))
	or exists (select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace where n.nspname = any($2) and pg_catalog.age(p.xmin) <= 0)
	or exists (select from pg_catalog.pg_type y join pg_catalog.pg_namespace n on n.oid = y.typnamespace where n.nspname = any($2) and pg_catalog.age(y.xmin) <= 0)`

// claimBuilt takes what buildAhead has built, as claimStep takes a spare.
func claimBuilt(name string) wire.Step {
	return wire.Step{
		SQL: `delete from pgtenancy.spares s where s.schema_name = $1 and exists (select from pg_catalog.pg_namespace n where n.nspname = s.schema_name)
			returning pg_catalog.set_config('` + spareSetting + `', s.schema_name, true)`,
		Args: []any{name},
	}
}

// dropBuilt drops what buildAhead has built and nobody has claimed. Where that fails, it is left to whoever drops stale spares.
func (f *Fleet) dropBuilt(ctx context.Context, name string) {
	if name == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wire.CleanupTimeout)
	defer cancel()
	_ = f.withOwner(ctx, func(wc *conn) error {
		_, err := wc.Run(ctx, []wire.Step{
			{SQL: beginSQL},
			{SQL: `delete from pgtenancy.spares where schema_name = $1`, Args: []any{name}},
			{SQL: "drop schema if exists " + ident.Quote(name) + " cascade"}, // which one that was claimed is not called any more
			{SQL: "commit"},
		})
		return err
	})
}

// namedSQL selects an object of schema $1 in whose definition its name is, or its bytes as $2.
const namedSQL = `
with s as materialized (select n.oid from pg_catalog.pg_namespace n where n.nspname = $1),
rel as materialized (select c.* from pg_catalog.pg_class c join s on s.oid = c.relnamespace),
object as (
	select 'function ' || p.proname as name, pg_catalog.concat_ws(' ', p.prosrc, p.proconfig, p.prosqlbody, p.proargdefaults) as text
		from pg_catalog.pg_proc p join s on s.oid = p.pronamespace
	union all select 'a default of ' || r.relname, d.adbin::text from pg_catalog.pg_attrdef d join rel r on r.oid = d.adrelid
	union all select 'constraint ' || k.conname, k.conbin::text from pg_catalog.pg_constraint k join s on s.oid = k.connamespace
	union all select 'policy ' || p.polname, pg_catalog.concat_ws(' ', p.polqual, p.polwithcheck) from pg_catalog.pg_policy p join rel r on r.oid = p.polrelid
	union all select case r.relkind when 'v' then 'view ' when 'm' then 'materialized view ' else 'a rule of ' end || r.relname,
			pg_catalog.concat_ws(' ', w.ev_qual, w.ev_action) from pg_catalog.pg_rewrite w join rel r on r.oid = w.ev_class
	union all select 'trigger ' || t.tgname, pg_catalog.concat_ws(' ', pg_catalog.encode(t.tgargs, 'escape'), t.tgqual)
		from pg_catalog.pg_trigger t join rel r on r.oid = t.tgrelid
	union all select 'index ' || r.relname, pg_catalog.concat_ws(' ', i.indexprs, i.indpred) from pg_catalog.pg_index i join rel r on r.oid = i.indexrelid
	union all select 'the options or bounds of ' || r.relname, pg_catalog.concat_ws(' ', r.reloptions, r.relpartbound) from rel r
	union all select 'type ' || t.typname, pg_catalog.concat_ws(' ', t.typdefault, t.typdefaultbin) from pg_catalog.pg_type t join s on s.oid = t.typnamespace
	union all select 'the labels of type ' || t.typname, e.enumlabel from pg_catalog.pg_enum e
		join pg_catalog.pg_type t on t.oid = e.enumtypid join s on s.oid = t.typnamespace
	union all select 'the name of ' || r.relname, r.relname from rel r
	union all select 'a comment', d.description from pg_catalog.pg_description d where d.objoid in (
		select s.oid from s union all select r.oid from rel r union all select p.oid from pg_catalog.pg_proc p join s on s.oid = p.pronamespace
		union all select t.oid from pg_catalog.pg_type t join s on s.oid = t.typnamespace
		union all select k.oid from pg_catalog.pg_constraint k join s on s.oid = k.connamespace
		union all select t.oid from pg_catalog.pg_trigger t join rel r on r.oid = t.tgrelid)
)
select min(o.name) from object o where pg_catalog.strpos(o.text, $1) > 0 or pg_catalog.strpos(o.text, $2) > 0`

// dropSpares drops stale spares, in an open transaction, and of several no more than that can hold.
func (f *Fleet) dropSpares(ctx context.Context, wc *conn, room int) error {
	// Whoever claims one has it locked. The sum is of all before it, so that one at least goes.
	rows, _ := wc.Pgx().Query(ctx, `select s.schema_name, (
			select 2 * count(*) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = s.schema_name)
		from pgtenancy.spares s where `+staleSpares+` order by s.made_at for update of s skip locked`, f.spareArgs(spareLease)...) // the error is in rows
	var names []string
	var name string
	var locks, all int
	_, err := pgx.ForEachRow(rows, []any{&name, &locks}, func() error {
		if all += locks; len(names) == 0 || all <= room {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	if len(names) == 0 {
		return nil
	}
	run := []wire.Step{{SQL: `delete from pgtenancy.spares where schema_name = any($1)`, Args: []any{names}}}
	for _, name := range names {
		run = append(run, wire.Step{SQL: "drop schema if exists " + ident.Quote(name) + " cascade"})
	}
	if _, err := wc.Run(ctx, run); err != nil {
		return fmt.Errorf("pgtenancy: keep spares: %w", err)
	}
	return nil
}
