-- Orders of September 2011 above 1,000, the largest first.
SELECT sales_order_id, order_date::date AS order_date, total_due
FROM sales.sales_order_header
WHERE order_date >= '2011-09-01' AND order_date < '2011-10-01' AND total_due > 1000
ORDER BY total_due DESC, sales_order_id
