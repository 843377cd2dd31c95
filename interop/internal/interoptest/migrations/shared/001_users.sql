create table users (
    id bigint generated always as identity primary key,
    tenant_id text not null,
    email text not null,
    unique (tenant_id, email)
);
grant select, insert, update, delete on users to interop_app;

-- Written by pgtenancy.Policy{Table: {"public", "users"}, Role: "interop_app"}: each tenant sees its own rows.

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
revoke truncate, references, trigger on "public"."users" from public, "interop_app";
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
