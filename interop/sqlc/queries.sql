-- Unqualified names: each statement finds the tables of the tenant in its context.

-- name: AddCustomer :one
insert into customers (email, name) values ($1, $2) returning id;

-- name: PlaceOrder :exec
insert into orders (customer_id, item, quantity, options) values ($1, $2, $3, $4);

-- name: Customer :one
select * from customers where email = $1;

-- name: Customers :many
select * from customers order by email;

-- name: OrdersOf :many
select * from orders where customer_id = any(sqlc.arg(customer_ids)::bigint[]) order by customer_id, id;

-- name: Rename :exec
update customers set name = $2 where email = $1;

-- name: Remove :exec
delete from customers where email = $1;

-- name: CustomersByStatus :many
select sqlc.embed(customers), sqlc.embed(orders)
from customers join orders on orders.customer_id = customers.id
where orders.status = $1 order by orders.id;

-- name: PlaceOrders :copyfrom
insert into orders (customer_id, item, quantity, options) values ($1, $2, $3, $4);

-- name: Pay :batchone
update orders set status = 'paid' where id = $1 returning id, status;

-- name: AddUser :exec
insert into users (email) values ($1);

-- name: Users :many
select * from users order by email;
