-- Pieces of each product ordered on each date.
SELECT product_id, p.name, h.order_date::date AS order_date, sum(d.order_qty) AS quantity
FROM sales.sales_order_detail AS d
JOIN sales.sales_order_header AS h USING (sales_order_id)
JOIN production.product AS p USING (product_id)
GROUP BY product_id, p.name, h.order_date::date
ORDER BY product_id, order_date
