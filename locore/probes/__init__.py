"""What a re-ranker does with a list: order, transitivity, attribution, synthetic lists."""
