-- Who may log in, of all tenants: a shared table. One e-mail address may belong to users of several tenants.

create table users (
    id bigint generated always as identity primary key,
    tenant_id text not null,
    email text not null,
    created_at timestamptz not null default now(),
    unique (tenant_id, email)
);
create index on users (email);
grant select, insert, update, delete on users to quickstart_app;

-- Written by pgtenancy.Policy{Table: {"public", "users"}, Role: "quickstart_app"}: each tenant sees its own rows.

alter table "public"."users" enable row level security;
alter table "public"."users" force row level security;
drop policy if exists tenant_isolation on "public"."users";
drop policy if exists tenant_global on "public"."users";
drop policy if exists tenant_global_owner on "public"."users";
drop policy if exists tenant_readers on "public"."users";
drop policy if exists reference_data on "public"."users";
create policy tenant_isolation on "public"."users"
    using ("tenant_id" = nullif(current_setting('app.current_tenant', true), '')::text)
    with check ("tenant_id" = nullif(current_setting('app.current_tenant', true), '')::text);
alter table "public"."users" alter column "tenant_id" set default nullif(current_setting('app.current_tenant', true), '')::text;
revoke truncate, references, trigger on "public"."users" from public, "quickstart_app";
do $$
begin
    if not exists (
        select from pg_catalog.pg_index i
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where i.indrelid = '"public"."users"'::regclass and i.indpred is null and a.attname = 'tenant_id'
    ) then
        create index on "public"."users" ("tenant_id");
    end if;
end
$$;

-- Written by its FinderSQL: to find the tenants of a user who logs in.

drop policy if exists "find_by_email" on "public"."users";
create policy "find_by_email" on "public"."users" for select to current_user
    using ("email"::text = nullif(current_setting('pgtenancy.find', true), ''));
create or replace function "public"."find_user" ("public"."users"."email"%TYPE) returns table ("tenant_id" "public"."users"."tenant_id"%TYPE)
language plpgsql security definer set search_path = pg_catalog, pg_temp set row_security = on as $$
begin
    -- Not by a SET of the function, which only a superuser could give it. An error undoes it too.
    perform set_config('pgtenancy.find', $1::text, true);
    return query select f."tenant_id" from "public"."users" f where f."email" = $1;
    perform set_config('pgtenancy.find', '', true);
end
$$;
revoke all on function "public"."find_user" ("public"."users"."email"%TYPE) from public;
grant execute on function "public"."find_user" ("public"."users"."email"%TYPE) to "quickstart_app";
