-- Customers' names and their number of orders; customers of the same name count separately.
SELECT customer_id, concat_ws(' ', p.first_name, p.middle_name, p.last_name) AS name, count(*) AS orders
FROM sales.sales_order_header
JOIN sales.customer AS c USING (customer_id)
JOIN person.person AS p ON p.business_entity_id = c.person_id
GROUP BY customer_id, p.business_entity_id
ORDER BY orders DESC, customer_id
