// The tables are complete without this script. It makes them sortable and filterable.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  new DataTable(table, {
    paging: false,
    info: false,
    order: [],
    autoWidth: false,
    layout: { topStart: null, topEnd: "search", bottomStart: null, bottomEnd: null },
    language: { search: "Filter" },
  });
}
