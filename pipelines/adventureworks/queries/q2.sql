-- The three products that sold most pieces for each number of days to manufacture; ties by product ID.
-- Both columns are the key of an offer's product: a join on one of them would count every detail many times.
SELECT days_to_manufacture, place, product_id, name, quantity
FROM (
    SELECT
        p.days_to_manufacture, p.product_id, p.name, sum(d.order_qty) AS quantity,
        row_number() OVER (PARTITION BY p.days_to_manufacture ORDER BY sum(d.order_qty) DESC, p.product_id) AS place
    FROM sales.sales_order_detail AS d
    JOIN sales.special_offer_product AS o USING (special_offer_id, product_id)
    JOIN production.product AS p USING (product_id)
    GROUP BY p.days_to_manufacture, p.product_id, p.name
) AS ranked
WHERE place <= 3
ORDER BY days_to_manufacture, place
