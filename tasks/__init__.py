"""Join editors and checks into the steps of a night; everything that touches Prefect below a flow."""
