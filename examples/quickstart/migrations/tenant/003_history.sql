-- Every change of an order's status is recorded, and a view sums orders up.

create table order_events (
    id bigint generated always as identity primary key,
    order_id bigint not null references orders (id) on delete cascade,
    status order_status not null,
    at timestamptz not null default now()
);
create index on order_events (order_id);

create function record_order_event() returns trigger language plpgsql as $$
begin
    -- Unqualified: the function runs in the scope of the statement that fired it.
    insert into order_events (order_id, status) values (new.id, new.status);
    return null;
end
$$;

create trigger order_events
    after insert or update of status on orders
    for each row execute function record_order_event();

create view order_totals as
    select o.id, c.name as customer, o.status, o.created_at,
           coalesce(sum(i.quantity * i.price_cents), 0)::bigint as total_cents
    from orders o
    join customers c on c.id = o.customer_id
    left join order_items i on i.order_id = o.id
    group by o.id, c.name;
