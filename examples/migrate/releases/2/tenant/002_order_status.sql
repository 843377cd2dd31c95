-- A constant default: no rewrite, and the lock is short.
alter table orders add column status text not null default 'open';

-- Not validated here, since that would read the table under the lock; the next file does it without one.
alter table orders add constraint orders_status check (status in ('open', 'paid', 'cancelled')) not valid;
