// Shows the description that lies beside this page, with Swagger UI, whose files come from the package fastapi-offline.
const ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  onComplete() { document.title = ui.specSelectors.info().get("title"); },
});
