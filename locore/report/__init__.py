"""Tables, differences, pictures, pages and exports."""
