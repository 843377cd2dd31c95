-- Unqualified names: each tenant has this table in a schema of its own.

create table notes (
    id bigint generated always as identity primary key,
    author text not null,
    body text not null check (body <> '')
);
