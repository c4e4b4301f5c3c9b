-- Orders with at least three detail lines, and how many they have.
SELECT sales_order_id, count(*) AS details
FROM sales.sales_order_detail
GROUP BY sales_order_id
HAVING count(*) >= 3
ORDER BY sales_order_id
